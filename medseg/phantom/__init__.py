"""A made-up dataset with known properties."""
