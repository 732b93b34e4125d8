"""The paper: from the results of a study to figures, tables, numbers, and the manuscript that is made of them."""
