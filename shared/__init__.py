"""What the chapters share: everything that is not the lesson itself.

Nothing is imported here, so that ``from shared import plots`` costs what it says.
"""
