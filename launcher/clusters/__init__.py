"""Where a run can go: clusters as small files, what SLURM has, what does not fit."""
