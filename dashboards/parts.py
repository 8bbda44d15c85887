"""What all dashboards are made of: panels that look alike, rows that ask a question, and the frame around them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge, common, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model

SOURCE = model.DataSourceRef(type_val="prometheus", uid="mlops-prometheus")
TAG = "mlops"
GRAPH_HEIGHT = 8
NUMBER_HEIGHT = 4

# The shortest span that a rate can be taken over, which Grafana derives from the scrape interval and the zoom.
RATE = "$__rate_interval"

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"
UP_OR_DOWN = {0: ("down", RED), 1: ("up", GREEN)}
NO_OR_YES = {0: ("no", RED), 1: ("yes", GREEN)}

# Colours from a value on, beginning with the colour of everything below the first.
Levels = tuple[str | float, ...]
Mapping = dict[int, tuple[str, str]]
Query = tuple[str, str]
"""An expression and the legend of its series."""

P = TypeVar("P", timeseries.Panel, stat.Panel, bargauge.Panel, statetimeline.Panel)
Row = tuple[str, Sequence[Builder[model.Panel]]]
"""A question, and the panels that answer it."""


def number(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    span: int = 4,
    levels: Levels = (GREEN,),
    mapping: Mapping | None = None,
    name_only: bool = False,
    trend: bool = True,
    none: str = "no data",
    decimals: int | None = None,
    more: str = "",
    height: int = NUMBER_HEIGHT,
) -> stat.Panel:
    """A big number, or with `name_only` the legend of a series in its place.

    Args:
        title: what the number is.
        description: what it means, and what to do about it.
        queries: where it comes from.
        unit: one of Grafana's units.
        span: columns of the grid.
        levels: colours by value.
        mapping: texts and colours of values.
        name_only: show the legend and not the value.
        trend: draw the history behind the number.
        none: what stands there when there is no series.
        decimals: digits after the point.
        more: uid of the dashboard with the details.
        height: rows of the grid; as high as a graph beside one.
    """
    panel = stat.Panel()
    panel.text_mode(options.BigValueTextMode.NAME if name_only else options.BigValueTextMode.AUTO)
    panel.graph_mode(options.BigValueGraphMode.AREA if trend else options.BigValueGraphMode.NONE)
    panel.color_mode(options.BigValueColorMode.VALUE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.no_value(none)
    if mapping:
        panel.mappings([_mapping(mapping)])
    if decimals is not None:
        panel.decimals(decimals)
    return _panel(panel, title, description, queries, unit, levels, span, height, instant=not trend, more=more)


def graph(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    span: int = 12,
    levels: Levels = (),
    stack: bool = False,
    minimum: float | None = 0,
    maximum: float | None = None,
    none: str = "no data",
    more: str = "",
) -> timeseries.Panel:
    """Lines over time, or stacked areas; `levels` draw dashed lines.

    Args:
        title: what is drawn.
        description: what it means, and what to do about it.
        queries: where it comes from.
        unit: one of Grafana's units.
        span: columns of the grid.
        levels: colours by value.
        stack: whether the series add up.
        minimum: lower end of the axis.
        maximum: upper end of the axis.
        none: what stands there when there is no series.
        more: uid of the dashboard with the details.
    """
    panel = timeseries.Panel()
    panel.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(options.LegendDisplayMode.TABLE)
        .placement(options.LegendPlacement.BOTTOM)
        .calcs(["mean", "max", "lastNotNull"])
    )
    panel.tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING))
    panel.line_width(1).fill_opacity(40 if stack else 10).show_points(options.VisibilityMode.NEVER)
    panel.no_value(none)
    if stack:
        panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL).group("A"))
    if levels:
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED))
    if minimum is not None:
        panel.min(minimum)
    if maximum is not None:
        panel.max(maximum)
    return _panel(panel, title, description, queries, unit, levels or (GREEN,), span, GRAPH_HEIGHT, more=more)


def bars(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    span: int = 12,
    levels: Levels,
    maximum: float | None = None,
    none: str = "no data",
    more: str = "",
) -> bargauge.Panel:
    """One bar for each series, as of now.

    Args:
        title: what is drawn.
        description: what it means, and what to do about it.
        queries: where it comes from.
        unit: one of Grafana's units.
        span: columns of the grid.
        levels: colours by value.
        maximum: right end of the bars.
        none: what stands there when there is no series.
        more: uid of the dashboard with the details.
    """
    panel = bargauge.Panel()
    panel.orientation(options.VizOrientation.HORIZONTAL).display_mode(options.BarGaugeDisplayMode.BASIC)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.min(0)
    panel.no_value(none)
    if maximum is not None:
        panel.max(maximum)
    return _panel(panel, title, description, queries, unit, levels, span, GRAPH_HEIGHT, instant=True, more=more)


def timeline(
    title: str, description: str, *queries: Query, mapping: Mapping, span: int = 12, height: int = GRAPH_HEIGHT
) -> statetimeline.Panel:
    """States over time, a line for each series.

    Args:
        title: what is drawn.
        description: what it means, and what to do about it.
        queries: where it comes from.
        mapping: texts and colours of the states.
        span: columns of the grid.
        height: rows of the grid.
    """
    panel = statetimeline.Panel()
    panel.mappings([_mapping(mapping)])
    panel.show_value(options.VisibilityMode.NEVER).row_height(0.8).merge_values(True)
    panel.legend(common.VizLegendOptions().show_legend(True).placement(options.LegendPlacement.BOTTOM))
    return _panel(panel, title, description, queries, "short", (GREEN,), span, height)


def dashboard(uid: str, title: str, description: str, rows: Sequence[Row], since: str = "now-6h") -> model.Dashboard:
    """A dashboard with its links to the others.

    Args:
        uid: part of its address.
        title: its name.
        description: the question it answers.
        rows: its panels.
        since: the span of time that it opens with.
    """
    builder = (
        build.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .timezone("browser")
        .readonly()
        .refresh("30s")
        .time(since, "now")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(build.DashboardLink("Dashboards").type(model.DashboardLinkType.DASHBOARDS).tags([TAG]).keep_time(True))
        .annotation(
            build.AnnotationQuery()
            .name("Model switched")
            .datasource(SOURCE)
            .enable(True)
            .icon_color(BLUE)
            .expr(f"sum(increase(model_server_model_switches_total[{RATE}])) > 0")
        )
    )
    for question, panels in rows:
        builder.with_row(build.Row(question))
        for panel in panels:
            builder.with_panel(panel)
    result = builder.build()
    for number_of_panel, placed in enumerate(result.panels or [], start=1):
        placed.id_val = number_of_panel
    return result


def share(part: str, whole: str) -> str:
    """The quotient of two sums of rates; 0 while nothing happens at all, rather than no answer."""
    return f"(({part} or vector(0)) / ({whole} > 0)) or vector(0)"


def otherwise(expression: str, label: str, text: str) -> str:
    """An expression that gives one series of value 0, with a label that says so, where it would give none."""
    return f'{expression} or on() label_replace(vector(0), "{label}", "{text}", "", "")'


def _panel(
    panel: P,
    title: str,
    description: str,
    queries: Sequence[Query],
    unit: str,
    levels: Levels,
    span: int,
    height: int,
    instant: bool = False,
    more: str = "",
) -> P:
    panel.title(title).description(description).datasource(SOURCE).unit(unit).span(span).height(height)
    if more:
        url = f"/d/{more}?${{__url_time_range}}"
        panel.links([build.DashboardLink("Details").type(model.DashboardLinkType.LINK).url(url)])
    colour, *rest = levels
    steps = [model.Threshold(value=None, color=str(colour))]
    steps += [
        model.Threshold(value=float(value), color=str(name)) for value, name in zip(rest[::2], rest[1::2], strict=True)
    ]
    panel.thresholds(build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
    if not isinstance(panel, timeseries.Panel):
        panel.color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    for reference, (expression, legend) in zip("ABCDEFGH", queries, strict=False):
        query = (
            prometheus.Dataquery()
            .ref_id(reference)
            .datasource(SOURCE)
            .expr(textwrap.dedent(expression).strip())
            .legend_format(legend)
        )
        panel.with_target(query.instant() if instant else query.range())
    return panel


def _mapping(texts: Mapping) -> model.ValueMap:
    return model.ValueMap(
        {
            str(value): model.ValueMappingResult(text=text, color=colour, index=index)
            for index, (value, (text, colour)) in enumerate(texts.items())
        }
    )
