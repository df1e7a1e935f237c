"""Systems that draw new pictures or say how likely one is."""
