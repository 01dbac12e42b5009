"""Studies from Python: what `import fedsim` offers beside the method itself.

`studies` loads and runs; `result` is what a run folder holds, as a table, comparisons and figures.
The command line calls the same functions.
"""
