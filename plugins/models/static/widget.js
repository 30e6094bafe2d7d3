// A card on Airflow's first page. Airflow gives React as a global, and takes the component from globalThis.AirflowPlugin.
const { createElement: make, useEffect, useState } = globalThis.React;
const BASE = new URL("..", import.meta.url);

function Line({ name, children }) {
  return make("div", { style: { display: "flex", gap: "0.75rem", padding: "2px 0" } },
    make("span", { style: { opacity: 0.72, minWidth: "7.5rem" } }, name),
    make("span", { style: { minWidth: 0, overflowWrap: "anywhere" } }, children));
}

function EvergreenModels() {
  const [told, setTold] = useState(null);
  const [wrong, setWrong] = useState("");
  useEffect(() => {
    const stop = new AbortController();
    fetch(new URL("data/summary", BASE), { credentials: "same-origin", signal: stop.signal })
      .then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error(`${answer.status}`))))
      .then(setTold)
      .catch((error) => { if (error.name !== "AbortError") setWrong(error.message); });
    return () => stop.abort();
  }, []);
  const frame = { border: "1px solid var(--chakra-colors-border, #d4d4d8)", borderRadius: "8px", padding: "12px 16px", fontSize: "14px", lineHeight: 1.5, margin: "8px 0" };
  const heading = make("div", { style: { fontWeight: 600, marginBottom: "4px" } },
    make("a", { href: new URL("plugin/models", document.baseURI).href, style: { textDecoration: "underline" } }, "Models"),
    told ? ` · ${told.name}` : "");
  if (wrong) return make("section", { style: frame, "aria-label": "Models" }, heading, `not read: ${wrong}`);
  if (!told) return make("section", { style: frame, "aria-label": "Models" }, heading, "…");
  const loss = told.realised.log_loss;
  return make("section", { style: frame, "aria-label": "Models" }, heading,
    make(Line, { name: "Serves" }, told.version ? `v${told.version} since ${told.since}` + (told.age_days == null ? "" : `, learned ${told.age_days.toFixed(1)} days ago`) : "nothing yet"),
    told.canary && make(Line, { name: "Canary" }, `v${told.canary}, ${Math.round(100 * told.canary_share)} % of entities`),
    make(Line, { name: "Retraining" }, told.phase),
    loss != null && make(Line, { name: "Newest labels" }, `${told.realised.day}: log-loss ${loss.toFixed(3)}` + (told.realised.auc == null ? "" : `, AUC ${told.realised.auc.toFixed(3)}`)),
    told.last && make(Line, { name: "Last decision" }, `${told.last.what}: ${told.last.reason}`),
    told.waiting.length > 0 && make(Line, { name: "Waits for you" }, told.waiting.join("; ")));
}

globalThis.AirflowPlugin = EvergreenModels;
