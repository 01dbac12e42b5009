"""Reports of runs: figures, and one HTML file that needs no network.

`fedsim.results.runs` reads run folders and `fedsim.results.rates` pools their rows. `comparisons`
and `findings` state what they show; `tables`, `layertables`, `clocktables` and `leaks` compute the
data of `figures`, among which `figure_selection` chooses; `htmltables`, `fleet` and `failures` make
tables; and `page` puts everything into one file.
"""
