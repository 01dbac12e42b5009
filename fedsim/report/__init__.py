"""Reports of runs: figures, and one HTML file that needs no network.

`runs` reads run folders and `lines` pools their rows; `questions` and `findings` say what they
show; `tables` and `layertables` make the data of `figures`, and `gallery` chooses among these;
`page` puts all into one file.
"""
