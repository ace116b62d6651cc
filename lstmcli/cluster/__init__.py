"""One run on many machines: a plan, its parts, and their merge. A part is a run like any other, of some of the sequences."""
