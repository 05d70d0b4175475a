"""One start of a run on its nodes: processes, why they ended, what follows."""
