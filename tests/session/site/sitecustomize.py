"""On PYTHONPATH of the tests' session hosts: the engine `local_processes` and a login that asks."""

import hpcsh_test_engine

hpcsh_test_engine.register()
