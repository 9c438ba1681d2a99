"""One cell, many cells on this machine, and adapted models read back from cells."""
