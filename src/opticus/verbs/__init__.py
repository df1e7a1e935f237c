"""The public verbs: the only place where data, metrics, plot and train meet."""
