"""The command `sandbox` (and `jupyter sandbox`): docker's verbs, thin over Engine.

`program` has the verbs and groups as tables; `plain` runs the two verbs that start one program without click, where it can.
"""
