"""The host that everything else is tested on."""

from testinfra.host import Host


def test_every_unit_of_the_host_is_up(host: Host) -> None:
    assert host.check_output("systemctl --failed --no-legend") == ""
    assert host.check_output("systemctl is-system-running") == "running"
