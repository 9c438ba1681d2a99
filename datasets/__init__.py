"""The data sets, a file each; `bench` comes first because it says what Ctrl-C does while modules load."""

import bench as bench
