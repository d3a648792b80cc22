"""What is on disk: cases, folds, the Decathlon's tasks, the embedded phantom, and what is wrong with a dataset."""
