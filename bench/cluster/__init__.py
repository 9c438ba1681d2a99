"""Cells as SLURM jobs: sent, watched, cancelled."""
