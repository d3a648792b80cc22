"""What the tests of several rooms share; no test file imports another."""
