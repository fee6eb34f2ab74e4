"""Random trees with arbitrary names and sizes near every limit: each call returns or raises an exception, and does so soon."""

import pickle
import resource
import time

import modula_rs as mr
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule
from longer import TIMES

#: Limits of a call: seconds of processor time, and bytes by which the process may grow.
SECONDS, BYTES = 5.0, 1 << 30

#: Calls that list every atom are made on trees of at most this many atoms. On larger trees the core refuses, or needs more memory.
LISTED = 100_000

limits = st.sampled_from([0, 1, 2, 3, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30])
sizes = st.one_of(st.integers(0, 4), st.just(3), limits)
numbers = st.one_of(st.floats(), st.integers(), st.sampled_from([1.0, 0.5, 1e308, 5e-324, 0.0, -1.0]))


class Trees(RuleBasedStateMachine):
    """Composes random trees of everything made before."""

    modules = Bundle("modules")

    def limited(self, call):
        """The result of a call, or None if it was refused; the call must stay within the limits of time and memory."""
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            return call()
        except Exception as error:
            assert str(error) or type(error) is MemoryError  # noqa: PT017
        finally:
            assert time.process_time() - began < SECONDS
            assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
        return None

    def kept(self, call):
        m = self.limited(call)
        return mr.Identity() if m is None else m

    @rule(target=modules, kind=st.sampled_from(["Linear", "Embed", "Conv2D", "Bias", "Scale"]), sizes=st.lists(sizes, max_size=3),
          mass=st.just(1.0) | numbers, share=st.none() | st.sampled_from(["s", "t"]) | st.text())  # fmt: skip
    def atom(self, kind, sizes, mass, share):
        return self.kept(lambda: getattr(mr, kind)(*sizes, mass=mass, share=share))

    @rule(target=modules, build=st.sampled_from([mr.Identity, mr.ReLU, mr.Tanh, mr.Flatten, mr.Softmax, mr.MergeHeads, mr.Add]))
    def bond(self, build):
        return build()

    @rule(target=modules, size=sizes, build=st.sampled_from([mr.SplitIntoHeads, mr.Rope, mr.Mean, mr.RMSDivide, mr.Mul, mr.Enumerate]))
    def bond_of_a_size(self, build, size):
        return self.kept(lambda: build(size))

    @rule(target=modules, outer=modules, inner=modules)
    def compose(self, outer, inner):
        return self.kept(lambda: outer @ inner)

    @rule(target=modules, one=modules, other=modules)
    def add(self, one, other):
        return self.kept(lambda: one - other)

    @rule(target=modules, members=st.lists(modules, max_size=4), outer=modules)
    def tuple(self, members, outer):
        return self.kept(lambda: outer @ tuple(members))

    @rule(target=modules, m=modules, times=st.integers(-1, 4) | limits)
    def power(self, m, times):
        return self.kept(lambda: m**times)

    @rule(target=modules, m=modules, by=numbers)
    def scaled(self, m, by):
        return self.kept(lambda: by * m)

    @rule(target=modules, m=modules, absolute=numbers, relative=st.none() | numbers)
    def tare(self, m, absolute, relative):
        return self.kept(lambda: pickle.loads(pickle.dumps(m)).tare(absolute, relative))

    @rule(target=modules, m=modules, name=st.text())
    def named(self, m, name):
        return self.kept(lambda: m.named(name))

    @rule(m=modules)
    def asked(self, m):
        for call in (str, repr, lambda m: m.sharpness, lambda m: (m.mass, m.sensitivity, m.smooth, m.in_features, m.out_features)):
            self.limited(lambda call=call: call(m))

    @rule(m=modules)
    def listed(self, m):
        if m.atoms + m.bonds <= LISTED:
            self.limited(lambda: m.leaves)
            self.limited(lambda: m.targets())
            self.limited(lambda: m.fingerprint)

    @rule(m=modules)
    def travelled(self, m):
        copied = pickle.loads(pickle.dumps(m))
        assert (str(copied), copied.atoms, copied.bonds) == (str(m), m.atoms, m.bonds)

    @rule(m=modules, x=st.sampled_from([(), (3,), (2, 3), (1, 4, 4, 2), (0, 3)]))
    def run_on_an_input(self, m, x):
        def call():
            if sum(int(np.prod([float(n) for n in leaf.shape])) for leaf in m.leaves) < 10**6:
                m(np.ones(x, np.float32), m.normalize(m.initialize(0)))

        if m.atoms + m.bonds <= 1000:
            self.limited(call)


Trees.TestCase.settings = settings(max_examples=30 * TIMES, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
TestTrees = Trees.TestCase
