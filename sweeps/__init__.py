"""Experiments on LAHR: designs, their scheduling, their analysis and their reports."""
