"""Job scripts for arrays of tasks, and which task this one is."""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lstmcli.errors import UsageError, shown

INDEX = {  # the variable that holds a task's index
    "SLURM_ARRAY_TASK_ID": "Slurm",
    "PBS_ARRAY_INDEX": "PBS Pro",
    "PBS_ARRAYID": "Torque",
    "SGE_TASK_ID": "SGE",
    "LSB_JOBINDEX": "LSF",
}
NO_ARRAY = {"SGE_TASK_ID": "undefined", "LSB_JOBINDEX": "0"}  # what it holds in jobs that are no arrays

# What differs between sites comes first.
SCRIPTS = {
    "slurm": """\
#SBATCH --time=01:00:00
#SBATCH --ntasks=1 --cpus-per-task={threads}
#SBATCH --mem={megabytes}M
#SBATCH --job-name=lstmcli
#SBATCH --array={array}
#SBATCH --signal=TERM@120
#SBATCH --requeue --open-mode=append
# srun gives a step one CPU, unless it is told.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" {command} --threads "$SLURM_CPUS_PER_TASK"
code=$?
# Stopped before the time limit: the same task again, which goes on. Not for ever: the limit may be too short for anything.
if [ $code -eq 75 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt 100 ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit $code
""",
    "pbs": """\
#PBS -l walltime=01:00:00
#PBS -l select=1:ncpus={threads}:mem={megabytes}mb
#PBS -N lstmcli
#PBS -J {array}
#PBS -r y
# --stop-after: some minutes before the time limit.
{choose}exec {command} --threads {threads} --stop-after 57m
""",
    "sge": """\
#$ -l h_rt=01:00:00
#$ -pe smp {threads}
#$ -l h_vmem={per_thread}M
#$ -N lstmcli
#$ -t {array}
#$ -r y -cwd
# --stop-after: some minutes before the time limit.
{choose}{command} --threads "$NSLOTS" --stop-after 57m
code=$?
# Stopped before the time limit: 99 asks for the same task again, which goes on.
if [ $code -eq 75 ]; then exit 99; fi
exit $code
""",
    "lsf": """\
#BSUB -W 1:00
#BSUB -n {threads} -R "span[hosts=1]"
#BSUB -M {megabytes}MB
#BSUB -J "lstmcli[{array}]"
#BSUB -wa TERM -wt 2
#BSUB -r -Q 75
exec {command} --threads {threads}
""",
}
RANGES = {"pbs": "PBS_ARRAY_INDEX", "sge": "SGE_TASK_ID"}  # these take a range of indices, not 1-2,5 as the others do
HEADROOM = 1.25  # above --max-memory, for what the system counts besides


def task_index(environment: Mapping[str, str]) -> tuple[int, str]:
    """Returns the index of this task and the variable that says it. Raises UsageError if none does, or if several differ."""
    found = {name: environment[name] for name in INDEX if environment.get(name)}
    useful = {name: value for name, value in found.items() if value != NO_ARRAY.get(name)}
    if not useful:
        if found:
            name, value = next(iter(found.items()))
            raise UsageError(f"--shard auto: {name} is {value}: this job of {INDEX[name]} is no array; give --shard N")
        raise UsageError(f"--shard auto: expected one of {', '.join(INDEX)}, found none; give --shard N")
    said = ", ".join(f"{name} is {shown(value)}" for name, value in useful.items())
    name, value = next(iter(useful.items()))
    if len(set(useful.values())) > 1 or not (value.isascii() and value.isdecimal()):
        raise UsageError(f"--shard auto: expected one whole number, {said}; give --shard N")
    return int(value), name


def array_expression(numbers: Sequence[int]) -> str:
    """Writes ascending numbers as schedulers take them: 1, 2 and 5 are 1-2,5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def job_script(kind: str, plan: Path, numbers: Sequence[int], threads: int, memory: int) -> str:
    """Returns a script for sbatch, qsub or bsub whose tasks make the parts `numbers` of a plan. memory: in bytes."""
    array, choose, shard = array_expression(numbers), "", "auto"
    if kind in RANGES and "," in array:
        choose = f"set -- {' '.join(map(str, numbers))}\nshift $((${RANGES[kind]} - 1))\n"
        array, shard = f"1-{len(numbers)}", '"$1"'
    template = SCRIPTS[kind]
    if kind == "pbs" and len(numbers) == 1:  # PBS has no arrays of one task
        template, shard = template.replace("#PBS -J {array}\n", ""), array
    megabytes = math.ceil(HEADROOM * memory / 1_000_000)
    # This very interpreter: a node's PATH may be another one.
    command = shlex.join([sys.executable, "-m", "lstmcli", "run", "--plan", str(plan), "--resume"])
    body = template.format(
        array=array,
        threads=threads,
        megabytes=megabytes,
        per_thread=math.ceil(megabytes / threads),
        command=f"{command} --shard {shard}",
        choose=choose,
    )
    merge = shlex.join(["lstmcli", "merge", str(plan), "-o", "out.h5"])
    return f"#!/bin/sh\n# When all tasks are done: {shown(merge)}\n{body}"
