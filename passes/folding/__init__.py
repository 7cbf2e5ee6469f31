"""What simplify and fold_batchnorm fold, one kind a file."""
