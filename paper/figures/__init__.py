"""Figures that the paper has and a report has not, at the width of a column or a page."""
