"""What a method or a data set promises, checked."""
