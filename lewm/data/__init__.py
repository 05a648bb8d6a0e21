"""Recorded rollouts: the store on disk, the writers that fill it, and the windows that training reads."""
