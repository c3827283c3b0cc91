"""Run trainings in several processes, on several devices and on a Ray cluster."""
