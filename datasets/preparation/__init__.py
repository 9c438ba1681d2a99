"""What `datasets.prepare` does; a folder of its own, so that it is not imported with every data set."""
