"""Policies that stable-baselines3 learns by acting in a task: to record with, and to compare planners with."""
