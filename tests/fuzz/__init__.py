"""Damaged inputs, made at random from a seed: whatever is broken, a command ends as it should.

`mutations` breaks a file or a value, `targets` says which files and which commands there are, `pristine` makes a small
finished run to break, `cases` runs one case and judges it. `python tests/fuzz` (make fuzz) runs thousands, `test_fuzz`
a few hundred within the suite. A case is told by its seed and number alone.
"""
