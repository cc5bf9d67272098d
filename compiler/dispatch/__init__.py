"""Dispatch: which backend multiplies what, for which numbers of rows, and why.

| file | what it holds |
|---|---|
| rules.py, RULES.md | the rules as data, and as text |
| conditions.py | what rules ask, by name |
| subject.py | a product and a machine as plain data |
| epilogue_form.py | what of an epilogue a library has |
| decide.py | from rules to decisions, with near misses |
| cost.py | whether a call is faster |
| modes.py | what can be asked of it |
| table.py | the decisions of a program as data |
"""
