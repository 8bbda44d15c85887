"""A model is trained, registered, served and asked; and a training run that fails harms nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
import requests
from conftest import PlaybookRun, container_ids, run_playbook, wait_until
from mlflow.tracking import MlflowClient
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import visibility_of_element_located as visible
from selenium.webdriver.support.ui import WebDriverWait
from testinfra.host import Host

Site = Callable[..., PlaybookRun]
MODEL = "code-search"


@pytest.fixture(scope="module")
def trained() -> PlaybookRun:
    """One training run."""
    result = run_playbook("site.yml", "--tags", "train")
    assert result.status == 0, result.output
    print(f"a training run took {result.seconds:.0f} s")
    return result


def ask(api_url: str, question: str) -> requests.Response:
    return requests.post(f"{api_url}/invocations", json={"inputs": [question]}, timeout=10)


@pytest.mark.usefixtures("trained")
class TestTrainedModel:
    def test_it_is_registered_as_champion(self, mlflow_url: str) -> None:
        version = MlflowClient(mlflow_url).get_model_version_by_alias(MODEL, "champion")
        assert version.status == "READY"

    def test_it_beats_bm25_by_the_figure_that_was_promised(self, mlflow_url: str) -> None:
        client = MlflowClient(mlflow_url)
        version = client.get_model_version_by_alias(MODEL, "champion")
        metrics = client.get_run(version.run_id).data.metrics
        # The fine-tuned model as it is served: its vectors and its lexical half together.
        ratio = metrics["test_hybrid_mrr"] / metrics["test_bm25_mrr"]
        assert ratio >= 1.15, f"the MRR of the fine-tuned model is {ratio:.2f} x BM25's: {metrics}"
        vectors = metrics["test_fine_tuned_mrr"] / metrics["test_bm25_mrr"]
        print(f"MRR over BM25's: {ratio:.2f}, with the vectors alone {vectors:.2f}")

    def test_it_is_served_without_a_restart(self, api_url: str, mlflow_url: str) -> None:
        wait_until(lambda: requests.get(f"{api_url}/ready", timeout=10).status_code == 200, 60, "the server is ready")
        version = MlflowClient(mlflow_url).get_model_version_by_alias(MODEL, "champion").version
        wait_until(
            lambda: str(requests.get(f"{api_url}/model", timeout=10).json()["version"]) == str(version),
            60,
            f"version {version} is served",
        )

    def test_it_answers_a_question_in_english(self, api_url: str) -> None:
        answer = ask(api_url, "return the median of numeric data")
        assert answer.status_code == 200, answer.text
        (found,) = answer.json()["predictions"]
        assert {"function", "file", "line", "signature", "score"} <= found[0].keys()
        assert found[0]["file"] == "statistics.py", found

    def test_it_is_asked_in_a_browser_which_asks_no_other_host(self, api_url: str, chromium: webdriver.Chrome) -> None:
        def shown(selector: str) -> str:
            return str(WebDriverWait(chromium, 120).until(visible((By.CSS_SELECTOR, selector))).text)

        chromium.get(f"{api_url}/")
        assert shown("h1") == MODEL
        question = chromium.find_element(By.CSS_SELECTOR, ".rows input")
        question.clear()
        question.send_keys("return the median of numeric data")
        chromium.find_element(By.ID, "ask").click()
        assert shown("#status") == "200 OK"
        assert "statistics.py" in shown("#shown")
        chromium.get(f"{api_url}/docs")
        for selector in ("#operations-model-post_invocations .opblock-summary-control", ".try-out__btn", ".execute"):
            shown(selector)
            chromium.find_element(By.CSS_SELECTOR, selector).click()
        assert shown(".live-responses-table tbody .response-col_status").startswith("200")
        assert chromium.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        assert {urlsplit(url).netloc for url in asked if not url.startswith("data:")} == {urlsplit(api_url).netloc}

    def test_its_pages_come_through_nginx_small_and_with_each_header_once(self, api_url: str) -> None:
        page = requests.get(f"{api_url}/docs", headers={"Accept": "text/html"}, timeout=10)
        for name in ("Content-Security-Policy", "X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy"):
            assert len(page.raw.headers.getlist(name)) == 1, name
        script = requests.get(f"{api_url}/static/swagger-ui-bundle.js", timeout=10)
        assert script.headers["Content-Encoding"] == "gzip"
        assert requests.get(f"{api_url}/", timeout=10).json()["error_code"] == "ENDPOINT_NOT_FOUND"

    def test_it_stays_served_when_mlflow_is_down(self, host: Host, api_url: str) -> None:
        host.check_output("systemctl stop mlops-mlflow")
        try:
            assert ask(api_url, "parse a url").status_code == 200
            host.check_output("systemctl restart mlops-serving")
            wait_until(lambda: ask(api_url, "parse a url").status_code == 200, 30, "the model on disk is served")
        finally:
            host.check_output("systemctl start mlops-mlflow")

    def test_a_run_that_fails_fails_the_play_with_its_log_and_harms_nothing(
        self, host: Host, api_url: str, failing_site: Site
    ) -> None:
        before = container_ids(host)
        # A corpus without one Python function in it.
        result = failing_site("--tags", "train", "--extra-vars", "training_corpus=/var/empty-corpus")
        assert "corpus" in result.output
        assert container_ids(host) == before
        assert ask(api_url, "parse a url").status_code == 200

    def test_the_closing_summary_asks_and_answers(self) -> None:
        result = run_playbook("playbooks/summary.yml")
        assert result.status == 0, result.output
        assert "Asked: return the median of numeric data" in result.output
        assert "healthy" in result.output
