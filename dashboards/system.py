"""System Metrics: the host, as the node exporter sees it."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import parts
from dashboards.parts import BLUE, GREEN, RATE, RED, YELLOW

CORES = "count(count by (cpu) (node_cpu_seconds_total))"
CPU_USED = f'1 - avg(rate(node_cpu_seconds_total{{mode="idle"}}[{RATE}]))'
MEMORY_USED = "1 - sum(node_memory_MemAvailable_bytes) / sum(node_memory_MemTotal_bytes)"
# Recorded by Prometheus, for the alerts too.
DISK_USED = "1 - mountpoint:node_filesystem_avail:ratio"
SPACE_IN_A_DAY = "clamp_min(min by (mountpoint) (predict_linear(node_filesystem_avail_bytes[6h], 86400)), 0)"
DISK_LEVELS = (GREEN, 0.9, YELLOW, 0.97, RED)


def dashboard() -> Dashboard:
    """The dashboard."""
    return parts.dashboard(
        "mlops-system",
        "System Metrics",
        "The host: is it overloaded, what is short, when is the disk full.",
        [
            (
                "Is the host in order?",
                [
                    parts.number(
                        "CPU",
                        "Share of all cores that is busy.",
                        (CPU_USED, "busy"),
                        unit="percentunit",
                        levels=(GREEN, 0.8, YELLOW, 0.95, RED),
                    ),
                    parts.number(
                        "Memory",
                        "Share that programs could not get any more; caches count as free.",
                        (MEMORY_USED, "used"),
                        unit="percentunit",
                        levels=(GREEN, 0.8, YELLOW, 0.9, RED),
                    ),
                    parts.number(
                        "Fullest disk",
                        "Used share of the fullest file system.",
                        (f"max({DISK_USED})", "used"),
                        unit="percentunit",
                        levels=DISK_LEVELS,
                    ),
                    parts.number(
                        "Load per core",
                        "Tasks that run or want to, by core, over 5 minutes. Above 1 some wait.",
                        (f"sum(node_load5) / {CORES}", "load"),
                        unit="short",
                        decimals=2,
                        levels=(GREEN, 1, YELLOW, 2, RED),
                    ),
                    parts.number(
                        "Up for",
                        "Since the host booted.",
                        ("time() - max(node_boot_time_seconds)", "uptime"),
                        unit="s",
                        levels=(BLUE,),
                        trend=False,
                    ),
                    parts.number(
                        "Killed for memory",
                        "Processes that the kernel killed in 24 h because memory, or a container's limit, was used up.",
                        ("sum(increase(node_vmstat_oom_kill[24h]))", "killed"),
                        unit="short",
                        decimals=0,
                        levels=(GREEN, 1, RED),
                    ),
                ],
            ),
            (
                "Who uses the processors?",
                [
                    parts.graph(
                        "CPU by mode",
                        "Shares of all cores. iowait is waiting for a disk, steal what another virtual machine took.",
                        (
                            (
                                f'sum by (mode) (rate(node_cpu_seconds_total{{mode!="idle"}}[{RATE}])) '
                                f"/ on () group_left () {CORES}"
                            ),
                            "{{mode}}",
                        ),
                        unit="percentunit",
                        span=8,
                        stack=True,
                        maximum=1,
                    ),
                    parts.graph(
                        "Load",
                        "Tasks that run or want to, and the cores there are for them.",
                        ("sum(node_load1)", "1 min"),
                        ("sum(node_load5)", "5 min"),
                        ("sum(node_load15)", "15 min"),
                        (CORES, "cores"),
                        unit="short",
                        span=8,
                    ),
                    parts.graph(
                        "Tasks",
                        "Those that run or could, and those that wait for a disk.",
                        ("sum(node_procs_running)", "running"),
                        ("sum(node_procs_blocked)", "waiting for a disk"),
                        unit="short",
                        span=8,
                    ),
                ],
            ),
            (
                "Are memory and open files enough?",
                [
                    parts.graph(
                        "Memory",
                        "What programs use, what the kernel keeps of files and gives back on demand, and the rest.",
                        (
                            (
                                "sum(node_memory_MemTotal_bytes) - sum(node_memory_MemFree_bytes)"
                                " - sum(node_memory_Cached_bytes) - sum(node_memory_Buffers_bytes)"
                            ),
                            "programs",
                        ),
                        ("sum(node_memory_Cached_bytes) + sum(node_memory_Buffers_bytes)", "files in memory"),
                        ("sum(node_memory_MemFree_bytes)", "free"),
                        unit="bytes",
                        span=8,
                        stack=True,
                    ),
                    parts.graph(
                        "Swap and page faults",
                        "Pages read from disk because they were not in memory. Many of them for long: memory is short.",
                        (f"sum(rate(node_vmstat_pgmajfault[{RATE}]))", "major faults"),
                        (f"sum(rate(node_vmstat_pswpin[{RATE}]))", "swapped in"),
                        (f"sum(rate(node_vmstat_pswpout[{RATE}]))", "swapped out"),
                        unit="ops",
                        span=8,
                    ),
                    parts.graph(
                        "Open files",
                        "Files, sockets and pipes that programs have open. One that never closes them climbs for days.",
                        ("sum(node_filefd_allocated)", "open"),
                        unit="short",
                        span=8,
                    ),
                ],
            ),
            (
                "When is the disk full?",
                [
                    parts.bars(
                        "Space used",
                        "By file system.",
                        (DISK_USED, "{{mountpoint}}"),
                        unit="percentunit",
                        span=8,
                        levels=DISK_LEVELS,
                        maximum=1,
                    ),
                    parts.graph(
                        "Space left",
                        "Dashed: below 5 GB a training run or a build may fail.",
                        ("min by (mountpoint) (node_filesystem_avail_bytes)", "{{mountpoint}}"),
                        (SPACE_IN_A_DAY, "{{mountpoint}} in a day, at this pace"),
                        unit="bytes",
                        span=8,
                        levels=(RED, 5e9, GREEN),
                    ),
                    parts.bars(
                        "Inodes used",
                        "Many small files use them up before the space.",
                        (
                            "max by (mountpoint) (1 - node_filesystem_files_free / (node_filesystem_files > 0))",
                            "{{mountpoint}}",
                        ),
                        unit="percentunit",
                        span=8,
                        levels=(GREEN, 0.8, YELLOW, 0.9, RED),
                        maximum=1,
                    ),
                ],
            ),
            (
                "Is the disk slow?",
                [
                    parts.graph(
                        "Read and written",
                        "By device.",
                        (f"sum by (device) (rate(node_disk_read_bytes_total[{RATE}]))", "{{device}} read"),
                        (f"sum by (device) (rate(node_disk_written_bytes_total[{RATE}]))", "{{device}} written"),
                        unit="Bps",
                        span=8,
                    ),
                    parts.graph(
                        "Busy",
                        "Share of time with a request under way. A disk near 1 is at its limit; SSDs can do more.",
                        (f"rate(node_disk_io_time_seconds_total[{RATE}])", "{{device}}"),
                        unit="percentunit",
                        span=8,
                        maximum=1,
                    ),
                    parts.graph(
                        "Time of a request",
                        "Mean seconds of a read and of a write, over all devices.",
                        (
                            parts.share(
                                f"sum(rate(node_disk_read_time_seconds_total[{RATE}]))",
                                f"sum(rate(node_disk_reads_completed_total[{RATE}]))",
                            ),
                            "read",
                        ),
                        (
                            parts.share(
                                f"sum(rate(node_disk_write_time_seconds_total[{RATE}]))",
                                f"sum(rate(node_disk_writes_completed_total[{RATE}]))",
                            ),
                            "write",
                        ),
                        unit="s",
                        span=8,
                    ),
                ],
            ),
            (
                "Is the network in order?",
                [
                    parts.graph(
                        "Traffic",
                        "Received by the host above, sent below zero.",
                        (f"rate(node_network_receive_bytes_total[{RATE}])", "{{device}} received"),
                        (f"-rate(node_network_transmit_bytes_total[{RATE}])", "{{device}} sent"),
                        unit="Bps",
                        minimum=None,
                    ),
                    parts.graph(
                        "Lost packets",
                        "Errors and drops, both ways. More than a few: cable, driver, or a queue that is too short.",
                        (
                            (
                                f"sum by (device) (rate(node_network_receive_errs_total[{RATE}])"
                                f" + rate(node_network_transmit_errs_total[{RATE}]))"
                            ),
                            "{{device}} errors",
                        ),
                        (
                            (
                                f"sum by (device) (rate(node_network_receive_drop_total[{RATE}])"
                                f" + rate(node_network_transmit_drop_total[{RATE}]))"
                            ),
                            "{{device}} drops",
                        ),
                        unit="pps",
                    ),
                ],
            ),
            (
                "Are the images up to date?",
                [
                    parts.bars(
                        "Age",
                        "Since the image was made. After 90 days give images_revision a new date, for its updates.",
                        ("max by (image) (time() - mlops_image_built_timestamp_seconds)", "{{image}}"),
                        unit="s",
                        span=8,
                        levels=(GREEN, 90 * 86400, YELLOW),
                    ),
                    parts.bars(
                        "Known holes with a fix",
                        "By the last check, once a week; make components names them. Without what was not checked.",
                        ('sum by (image) (mlops_known_holes{fixed="yes"})', "{{image}}"),
                        unit="short",
                        span=8,
                        levels=(GREEN, 1, YELLOW),
                        none="not checked",
                    ),
                    parts.number(
                        "Images not checked",
                        "Nobody can tell which holes are known of them; make status says why.",
                        ("sum(min by (image) (mlops_known_holes_checked) < bool 1)", "images"),
                        unit="short",
                        span=8,
                        decimals=0,
                        levels=(GREEN, 1, YELLOW),
                        trend=False,
                        none="no list",
                        height=parts.GRAPH_HEIGHT,
                    ),
                ],
            ),
            (
                "Is the measuring itself in order?",
                [
                    parts.graph(
                        "Scrapes",
                        "Seconds that each service takes to tell its metrics; Prometheus gives up after 10.",
                        ("max by (job) (scrape_duration_seconds)", "{{job}}"),
                        unit="s",
                        span=8,
                    ),
                    parts.graph(
                        "Series",
                        "Time series in Prometheus's memory; each takes a few kilobytes.",
                        ("sum(prometheus_tsdb_head_series)", "series"),
                        unit="short",
                        span=8,
                    ),
                    parts.graph(
                        "Space for metrics",
                        "What Prometheus keeps on disk: finished blocks, and the log of the last hours.",
                        ("sum(prometheus_tsdb_storage_blocks_bytes)", "blocks"),
                        ("sum(prometheus_tsdb_wal_storage_size_bytes)", "log"),
                        unit="bytes",
                        span=8,
                        stack=True,
                    ),
                ],
            ),
        ],
    )
