"""Pages and pictures of a run; reads the store and nothing else."""
