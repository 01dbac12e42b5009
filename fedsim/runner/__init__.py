"""Running a scenario: one run, all combinations of a matrix, and checks and estimates before."""
