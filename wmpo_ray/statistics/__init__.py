"""Statistics of comparisons. Imports scipy.stats, which takes 0.7 s: import these files where they are used."""
