"""Ranking + budget → keep set, at widths that run fast; in time too."""
