from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.vms.domain.cluster import Node, Template
from services.vms.domain.placement import Candidate, Demand, Policy, explain, judge, rank, template_for

TEMPLATE = Template(9000, "sv1", "debian", "debian-13", 2, 2048, 3, frozenset({"shared"}), shared=True, cloud_init=True)


def node(name: str, *, cores: int = 16, memory_mib: int = 65_536, online: bool = True, load: float = 0.1) -> Node:
    return Node(name, online, cores, memory_mib, 0, load)


nodes = st.builds(
    Node,
    name=st.sampled_from([f"sv{number}" for number in range(1, 9)]),
    online=st.booleans(),
    cores=st.integers(0, 64),
    memory_mib=st.integers(0, 262_144),
    memory_used_mib=st.integers(0, 262_144),
    cpu_load=st.floats(0, 1.5),
)
candidates = st.builds(
    Candidate,
    node=nodes,
    promised_cores=st.integers(0, 300),
    promised_memory_mib=st.integers(0, 300_000),
    machines=st.integers(0, 100),
    template=st.none() | st.just(TEMPLATE),
    free_gib=st.floats(0, 10_000),
    avoided=st.none() | st.just("it went down"),
)
clusters = st.lists(candidates, max_size=8, unique_by=lambda one: one.node.name)
demands = st.builds(
    Demand,
    cores=st.integers(1, 64),
    memory_mib=st.integers(128, 131_072),
    disk_gib=st.integers(1, 5000),
    node=st.none() | st.sampled_from(["sv1", "sv2", "elsewhere"]),
)
policies = st.builds(
    Policy, cpu_ratio=st.floats(0.5, 8), memory_ratio=st.floats(0.5, 2), memory_reserve_mib=st.integers(0, 8192)
)


@given(demands, clusters, policies)
def test_a_node_that_fits_can_hold_what_is_wished_and_all_it_was_promised_before(
    demand: Demand, cluster: list[Candidate], policy: Policy
) -> None:
    by_name = {one.node.name: one for one in cluster}
    for verdict in rank(demand, cluster, policy):
        if verdict.fits:
            one = by_name[verdict.node]
            assert one.node.online
            assert one.template is verdict.template is not None
            assert one.avoided is None
            assert demand.node in (None, verdict.node)
            assert one.promised_memory_mib + demand.memory_mib <= policy.memory_mib(one.node)
            assert one.promised_cores + demand.cores <= policy.cores(one.node)
            assert demand.disk_gib <= one.free_gib


@given(demands, clusters, policies)
def test_every_node_is_judged_once_and_each_refusal_has_a_reason(
    demand: Demand, cluster: list[Candidate], policy: Policy
) -> None:
    verdicts = rank(demand, cluster, policy)
    assert sorted(verdict.node for verdict in verdicts) == sorted(one.node.name for one in cluster)
    for verdict in verdicts:
        assert verdict.fits != bool(verdict.reasons)
        assert 0 <= verdict.score <= 1
    fitting = [verdict.fits for verdict in verdicts]
    assert fitting == sorted(fitting, reverse=True)
    scores = [verdict.score for verdict in verdicts if verdict.fits]
    assert scores == sorted(scores, reverse=True)


@given(demands, clusters, policies, st.randoms())
def test_the_order_in_which_nodes_are_listed_does_not_matter(
    demand: Demand, cluster: list[Candidate], policy: Policy, random: object
) -> None:
    shuffled = list(cluster)
    random.shuffle(shuffled)  # type: ignore[attr-defined] # hypothesis' own Random
    assert rank(demand, cluster, policy) == rank(demand, shuffled, policy)


@given(demands, candidates, policies)
def test_more_promises_never_make_a_node_better(demand: Demand, one: Candidate, policy: Policy) -> None:
    busier = replace(one, promised_cores=one.promised_cores + 4, promised_memory_mib=one.promised_memory_mib + 4096)
    before, after = judge(demand, one, policy), judge(demand, busier, policy)
    assert before.fits or not after.fits
    assert after.score <= before.score


def test_the_emptier_of_two_equal_nodes_wins() -> None:
    full = Candidate(node("sv1"), promised_memory_mib=40_000, promised_cores=20, template=TEMPLATE, free_gib=100)
    empty = Candidate(node("sv2"), template=TEMPLATE, free_gib=100)
    assert [verdict.node for verdict in rank(Demand(2, 2048, 10), [full, empty], Policy())] == ["sv2", "sv1"]


def test_a_full_cluster_tells_what_each_node_lacks() -> None:
    cluster = [
        Candidate(node("sv1", memory_mib=4096), template=TEMPLATE, free_gib=100),
        Candidate(node("sv2", online=False), template=TEMPLATE, free_gib=100),
        Candidate(node("sv3", cores=2), template=None, free_gib=1),
    ]
    told = explain(rank(Demand(4, 4096, 10), cluster, Policy()))
    assert "sv1: 4096 MiB of memory are wanted, 2048 MiB can still be promised" in told
    assert "sv2: the node is offline" in told
    assert "sv3: no copy of the template can be cloned to it, 4 cores are wanted, the node has 2" in told


def test_a_copy_on_the_node_is_cloned_rather_than_one_elsewhere() -> None:
    near = replace(TEMPLATE, vmid=9005, node="sv2")
    assert template_for("sv2", [TEMPLATE, near], lambda _one: True) == near
    assert template_for("sv3", [TEMPLATE, near], lambda _one: True) == TEMPLATE
    assert template_for("sv3", [replace(TEMPLATE, shared=False)], lambda _one: True) is None
    assert template_for("sv1", [replace(TEMPLATE, shared=False)], lambda _one: True) is not None
    assert template_for("sv1", [TEMPLATE], lambda _one: False) is None
