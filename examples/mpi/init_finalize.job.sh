#!/bin/bash
# init_finalize as a plain Slurm job: no DVM, Slurm itself is the PMIx server.
#
#     hpcsh submit init_finalize.job.sh [INTS_PER_PAIR]       or: sbatch init_finalize.job.sh
#
# Submit it in the directory that has the compiled init_finalize, or name the program in INIT_FINALIZE.
#SBATCH --job-name=init_finalize
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --time=5

exec srun --mpi=pmix "${INIT_FINALIZE:-./init_finalize}" "$@"
