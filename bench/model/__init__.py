"""The frozen SAM, the seam where methods enter it, and the promptable segmenter made of both."""
