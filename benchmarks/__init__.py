"""Benchmarks start Ray on this machine; it reads its environment when it is imported, so this comes first."""

from cluster.host.security import prepare_ray

prepare_ray("")
