"""Slurm jobs as workloads: what every engine on a Slurm cluster shares.

On the target a workload of ours lives in `<workdir>/jobs/<id>/`:

- `job.slurm`   the submitted script; its first act is the guard (design 6.1)
- `run/<id>`    made exclusively by the guard, holds the job id (`withdrawn` when hpcsh took it itself)
- `marks`       one line per happening, `<epoch> <what> [<who>] [<value>]`, appended by the script:
                `start <jobid> <stdout path>`, `container-start NAME`, `container-exit NAME CODE`,
                `signal NAME`, `restart COUNT`, `end CODE`; tasks of an array write to `marks.<task>`
- `setup.sh`, `slurm_script`   the profile's setup, a user's own script; its arguments in `script.argv`
- further files of the engine, and logs
"""

from hpcsh.engines.jobs.core import Jobs
from hpcsh.engines.jobs.types import JobSpec, Mark, Refine, Staged

__all__ = ["JobSpec", "Jobs", "Mark", "Refine", "Staged"]
