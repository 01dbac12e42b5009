"""Reports of runs: figures, and one HTML file that needs no network.

`runs` reads run folders, `lines` pools their rows, `findings` says what they show, `tables`
and `layertables` make the data of `figures`, `gallery` chooses among these, and `page` puts all
into one file.
"""
