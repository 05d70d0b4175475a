"""Files of clusters: which one holds here, what SLURM adds to it, and what becomes of it on the nodes."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from launcher import options
from launcher.clusters import cluster as clusters
from launcher.clusters import place, slurm
from launcher.clusters.cluster import Cluster, NoAnswer, Node
from launcher.clusters.environment import Container, Environment, quoted
from retrieval_train import config as configs
from retrieval_train.config import ConfigError
from tests.launcher.conftest import ROOT, program

# in SLURM's own words (22.05)
SINFO = "main*|64|gpu:a100:8(S:0-1)\nmain*|32|gpu:a100:4,nvme:2\nbig|96|gpu:8\nplain|8|(null)\n"
PARTITIONS = """\
PartitionName=main AllowGroups=ALL Default=YES QoS=N/A MaxNodes=UNLIMITED MaxTime=1-12:00:00 TotalNodes=2 State=UP
PartitionName=big AllowGroups=ALL Default=NO QoS=N/A MaxNodes=3 MaxTime=UNLIMITED TotalNodes=1 State=UP
PartitionName=plain AllowGroups=ALL Default=NO QoS=N/A MaxNodes=UNLIMITED MaxTime=30:00 TotalNodes=1 State=UP
"""
JOB = (
    "JobId=7 JobState=RUNNING NodeList=n[1-3] NumNodes=3 NumCPUs=14 TRES=cpu=14,node=3,billing=14 "
    "JOB_GRES=gpu:8   Nodes=n[1-2] CPU_IDs=0-3,8 Mem=0 GRES=gpu:2(IDX:0-1)   Nodes=n3 CPU_IDs=0-3 Mem=0 "
    "GRES=gpu:a100:4(IDX:0-3) MinCPUsNode=1 Command=(null) \n"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A login node `login7` whose SLURM answers with the words above, and no cluster's file."""
    answers = {"partition": PARTITIONS, "job": JOB, "config": "ClusterName             = lab\nSlurmUser = root\n"}
    for name, text in answers.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "sinfo.out").write_text(SINFO)
    is_up = 'ping) echo "Slurmctld(primary) at head is UP"'
    scontrol = f'for last; do :; done\ncase "$*" in {is_up};; *"show job"*) last=job;; esac\n'
    programs = {
        "sbatch": "exit 1",
        "sinfo": f"exec /bin/cat {shlex.quote(str(tmp_path / 'sinfo.out'))}",
        "scontrol": f'{scontrol}[ "$1" = ping ] || exec /bin/cat {shlex.quote(str(tmp_path))}/"$last"',
    }
    for name, text in programs.items():
        program(tmp_path, name, text)
    (tmp_path / "cluster").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(clusters, "_FOLDER", tmp_path / "cluster")
    monkeypatch.setattr("socket.gethostname", lambda: "login7.lab.org")
    for name in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SBATCH_ACCOUNT", "SBATCH_QOS"):
        monkeypatch.delenv(name, raising=False)
    add(tmp_path, slurm="scheduler: slurm", local="scheduler: local")
    return tmp_path


def add(here: Path, **files: str) -> None:
    for name, text in files.items():
        (here / "cluster" / f"{name}.yaml").write_text(text + "\n")


def found(*argv: str) -> place.Place:
    return place.find_place(options.parse(list(argv), about=None))


# --- which file


def test_the_files_of_the_project_are_read_and_say_every_default() -> None:
    for name in clusters.names():
        clusters.load(name)
    given = yaml.safe_load((ROOT / "configs/cluster/slurm.yaml").read_text())
    assert set(given) == set(Cluster.model_fields), "slurm.yaml is what one copies: it names every key"
    assert clusters.load("slurm") == Cluster(scheduler="slurm")
    assert yaml.safe_load((ROOT / "environment.yml").read_text())["name"] == "retrieval-train"


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({}, "slurm"),
        ({"mine": "{scheduler: slurm, match: [login*]}"}, "mine"),
        ({"mine": "{scheduler: slurm, match: [lab]}"}, "mine"),
        ({"mine": "{scheduler: slurm, match: [la]}", "other": "{scheduler: local, match: [node*]}"}, "slurm"),
    ],
)
def test_a_file_holds_where_its_match_fits_the_host_or_the_slurm(files: dict[str, str], name: str, here: Path) -> None:
    add(here, **files)
    assert found().there.cluster == name
    assert found("--cluster", "local").there.cluster == "local"
    assert found("--print-command").there.cluster == "local"


def test_without_a_slurm_only_the_host_can_fit(here: Path) -> None:
    (here / "bin/sbatch").unlink()
    add(here, mine="{scheduler: slurm, match: [lab]}")
    assert found().there.cluster == "local"
    add(here, mine="{scheduler: slurm, match: ['login?.lab.org']}")
    with pytest.raises(ConfigError, match=r"--cluster mine  there is no SLURM here \(no sbatch on PATH\)"):
        found()


def test_two_files_that_fit_are_told(here: Path) -> None:
    add(here, a="{scheduler: slurm, match: [lab]}", b="{scheduler: local, match: [login7.*]}")
    with pytest.raises(
        ConfigError, match=r"--cluster  a and b both have a `match` for login7.lab.org or lab; say which"
    ):
        found()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "{scheduler: local, modules: [cuda], max_nodes: 3}",
            "max_nodes, modules: for SLURM only; with scheduler: local",
        ),
        (
            "{scheduler: allocation, partition: a, time_min: 3}",
            "partition, time_min: for SLURM only; with scheduler: al",
        ),
        ("{scheduler: slurm, time_min: 90, max_time_min: 60}", "time_min: 90 is more than max_time_min, 60"),
        ("{scheduler: slurm, conda: a, venv: b}", "conda and venv: each says which Python the ranks run"),
        ("{scheduler: slurm, env: {'A;B': c}}", "env.A;B.[key]  'A;B' is not allowed"),
        ('{scheduler: slurm, env: {A: "b\\nc"}}', "env.A  'b\\nc' is not allowed"),
        ("{scheduler: slurm, container: {image: i, binds: [data]}}", "container.binds.0  'data' is not allowed"),
        ("{scheduler: slurm, requeue: {preempt: 3}}", "requeue.preempt  unknown key; did you mean requeue.preempted?"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_key(text: str, words: str, here: Path) -> None:
    add(here, mine=text)
    with pytest.raises(ConfigError) as told:
        clusters.load("mine")
    assert words in str(told.value)


# --- what SLURM has


def test_partitions_have_their_nodes_and_limits(here: Path) -> None:
    main, big, plain = slurm.partitions()
    assert main.nodes == (Node(8, 64), Node(4, 32))
    assert (main.least, big.least, plain.least) == (Node(4, 32), Node(8, 96), Node(0, 8))
    assert (main.max_nodes, big.max_nodes) == (None, 3)
    assert (main.max_time_min, big.max_time_min, plain.max_time_min) == (36 * 60, None, 30)
    assert found().there.partitions == (main,)
    both = found("--partition", "big,main").there
    assert (both.partitions, both.node) == ((big, main), Node(4, 32))


def test_partitions_come_from_the_command_line_the_file_the_shell_or_slurm(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "plain")
    add(here, mine="{scheduler: slurm, partition: big}")
    chosen = [found(*argv).there.partitions[0].name for argv in ([], ["--cluster", "mine"], ["--partition", "main"])]
    assert chosen == ["plain", "big", "main"]


def test_a_partition_that_is_not_there_is_refused_with_those_that_are(here: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--partition big,nope  'nope' is no partition .* there are: big, main, plain"
    ):
        found("--partition", "big,nope")
    (here / "partition").write_text(PARTITIONS.replace("Default=YES", "Default=NO"))
    with pytest.raises(ConfigError, match=r"--partition  is needed: SLURM has no default partition; there are: big"):
        found()


def test_an_allocation_has_what_all_its_nodes_have(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(here, allocation="scheduler: allocation")
    with pytest.raises(
        ConfigError, match=r"--cluster allocation  this shell is in no allocation .* begin one with salloc"
    ):
        found("--cluster", "allocation")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    there = found("--cluster", "allocation").there
    assert (there.num_nodes, there.node) == (3, Node(2, 4))
    (here / "job").write_text(JOB.replace("RUNNING", "COMPLETED"))
    with pytest.raises(NoAnswer, match="SLURM job 7 of this shell is COMPLETED"):
        slurm.allocation()


# --- on the nodes


@pytest.mark.parametrize("text", ["a b", "$(touch x)", "`touch x`", "it's", 'a"b', "", "\\", "$", "a;b|c&d"])
def test_a_value_is_one_word_of_the_shell_with_variables_filled_in(text: str, tmp_path: Path) -> None:
    line = f"printf '%s|' {quoted(text)} {quoted(text + '${HERE}' + text)} {quoted('$HERE/' + text)}"
    told = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env={"HERE": "x y"}, capture_output=True, text=True, check=True
    )
    assert told.stdout == f"{text}|{text}x y{text}|x y/{text}|"
    assert not list(tmp_path.iterdir())


def test_the_lines_for_a_node_are_what_its_shell_needs(tmp_path: Path) -> None:
    (tmp_path / "my env/bin").mkdir(parents=True)
    (tmp_path / "my env/bin/activate").write_text("PATH=activated:$PATH\n")
    given = Environment(
        setup=(
            "false",
            "module() { echo module: $*; [ $2 != gone ]; }",
        ),
        modules=("cuda/12.4", "gcc"),
        venv=str(tmp_path / "my env"),
        scratch="$NODE_DISK/me",
        env={"NCCL_SOCKET_IFNAME": "^lo,docker0", "WORDS": "it's `here`"},
    )
    more = 'echo "$RETRIEVAL_SCRATCH|$NCCL_SOCKET_IFNAME|$WORDS|${PATH%%:*}"'
    assert bash([*given.shell_lines(), more]) == (
        0,
        "module: load cuda/12.4\nmodule: load gcc\n/disk/me|^lo,docker0|it's `here`|activated\n",
    )
    gone = given.model_copy(update={"modules": ("gone", "gcc")})
    assert bash([*gone.shell_lines(), more]) == (1, "module: load gone\n"), "a job without its module must not go on"
    assert given.python_words((), with_gpus=True) == ("python",)
    assert Environment().python_words((), with_gpus=True) == Environment().shell_lines() == ()


def test_a_conda_environment_is_activated_for_the_ranks() -> None:
    conda = 'conda() { [ $1 = shell.bash ] && echo ":" || echo "conda: $*"; }'
    assert bash([conda, *Environment(conda="my env").shell_lines()]) == (0, "conda: activate my env\n")


def bash(lines: list[str]) -> tuple[int, str]:
    env = {"PATH": "/usr/bin:/bin", "NODE_DISK": "/disk"}
    told = subprocess.run(["bash", "-c", "\n".join(lines)], env=env, capture_output=True, text=True, check=False)
    return told.returncode, told.stdout


def test_ranks_run_inside_a_container_that_sees_what_the_run_needs() -> None:
    folders = (Path("/home/me/it's here"), Path("/data"))
    apptainer = Container(image="/images/train.sif", binds=("/data", "/raw:/in:ro"))
    assert apptainer.srun_words(folders) == ()
    assert apptainer.python_words(folders, with_gpus=True) == (
        *("apptainer", "exec", "--nv", "--bind", "/data", "--bind", "/raw:/in:ro", "--bind", "/home/me/it's here"),
        *("/images/train.sif", "python"),
    )
    assert "--nv" not in apptainer.python_words(folders, with_gpus=False)
    pyxis = Container(image="nvcr.io/it:1", runtime="pyxis", binds=("/raw:/in:ro",), python="/opt/python")
    assert pyxis.python_words(folders, with_gpus=True) == ("/opt/python",)
    assert pyxis.srun_words((Path("/data"),)) == (
        "--container-image=nvcr.io/it:1",
        "--container-mounts=/raw:/in:ro,/data:/data",
    )


def test_a_file_is_json_and_back(here: Path) -> None:
    text = "{scheduler: slurm, container: {image: i, binds: [/data]}, requeue: {crash: 0}, env: {A: b}}"
    add(here, mine=text)
    mine = clusters.load("mine")
    assert configs.check(Cluster, json.loads(mine.model_dump_json()), where="it") == mine
