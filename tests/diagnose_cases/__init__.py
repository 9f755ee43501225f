"""Small programs with one fault each, their repaired twins, and healthy ones.

`diagnose` is tested on them. A program is what a reader would hand in: a step and the
objects around it. A case builds its program anew for each seed, faulty or repaired.
"""
