"""One run on many machines: a plan, its parts, and their merge. A part is a run like any other, over some of the sequences."""
