"use strict";
// Shows the table of outputs. Whatever a program wrote becomes text: nothing here makes markup.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const column = Object.fromEntries(data.columns.map((name, place) => [name, place]));
  const statuses = Object.keys(data.statuses);
  const PAGE = 50;
  let parsed = null; // the details, read when they are first needed
  const details = () => (parsed ??= JSON.parse(byId("details").textContent));

  const make = (tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = String(text);
    if (name) element.className = name;
    return element;
  };
  const statusOf = (row) => (row[column.status] < 0 ? "unjudged" : statuses[row[column.status]]);
  const label = (status) => data.statuses[status] ?? "no verdict";
  const repoOf = (row) => data.repos[row[column.repo]] ?? "";
  const keyOf = (row) => `${row[column.github_id]}/${row[column.id]}/${row[column.index]}`;
  const seconds = (value) =>
    value === null ? "–" : value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(2)} s`;
  const size = (value) => {
    if (value === null) return "–";
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = 0;
    while (value >= 1024 && power < 4) { value /= 1024; power += 1; }
    return `${value >= 100 || power === 0 ? value.toFixed(0) : value.toFixed(1)} ${units[power]}`;
  };
  const failure = (number) => {
    const [kind, what] = data.failures[number];
    return what ? `${data.kinds[kind]}: ${what}` : data.kinds[kind];
  };
  const failureOf = (row) => (row[column.failure] === null ? "" : failure(row[column.failure]));
  const exit = (row) =>
    row[column.signal] !== null ? `signal ${row[column.signal]}` : row[column.exit_code] ?? "–";

  const heads = [
    { name: "output", value: (row) => [row[column.github_id], row[column.id], row[column.index]] },
    { name: "repository", value: (row) => repoOf(row).toLowerCase(), text: true },
    { name: "status", value: (row) => row[column.status], text: true },
    { name: "time", value: (row) => row[column.wall_s] },
    { name: "CPU", value: (row) => row[column.cpu_s] },
    { name: "memory", value: (row) => row[column.peak_memory_bytes] },
    { name: "exit", value: (row) => row[column.exit_code] },
    { name: "failure", value: (row) => failureOf(row) || null, text: true },
  ];

  // What is shown: a filter, an order, a page.
  let order = { by: 0, down: false };
  let page = 0;
  let shown = [];
  const open = new Set();
  const filters = { text: byId("f-text"), status: byId("f-status"), repo: byId("f-repo"),
    failure: byId("f-failure") };

  const compare = (a, b) => {
    if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1; // unknown comes last
    const sign = order.down ? -1 : 1;
    if (Array.isArray(a)) {
      for (let i = 0; i < a.length; i += 1) if (a[i] !== b[i]) return sign * (a[i] - b[i]);
      return 0;
    }
    return a === b ? 0 : sign * (a < b ? -1 : 1);
  };

  const matches = (number, text) => {
    const row = data.rows[number];
    if (`${keyOf(row)} ${repoOf(row)} ${failureOf(row)}`.toLowerCase().includes(text))
      return true;
    const detail = details().outputs[number];
    const code = detail.code ? detail.code.filter((_, place) => place % 2).join("") : "";
    return [detail.stdout, detail.stderr, detail.why, code].some(
      (one) => one && one.toLowerCase().includes(text));
  };

  const failedSo = (row, wanted) => {
    const number = row[column.failure];
    return number !== null && (String(number) === wanted || data.failures[number][0] === wanted);
  };

  const select = () => {
    const text = filters.text.value.trim().toLowerCase();
    shown = [];
    data.rows.forEach((row, number) => {
      if (filters.status.value && statusOf(row) !== filters.status.value) return;
      if (filters.repo.value && String(row[column.repo]) !== filters.repo.value) return;
      if (filters.failure.value && !failedSo(row, filters.failure.value)) return;
      if (text && !matches(number, text)) return;
      shown.push(number);
    });
    const { value } = heads[order.by];
    shown.sort((a, b) => compare(value(data.rows[a]), value(data.rows[b])) || a - b);
    page = 0;
    draw();
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    page = Math.min(page, pages - 1);
    const rows = shown.slice(page * PAGE, (page + 1) * PAGE);
    byId("body").replaceChildren(...rows.flatMap(drawRow));
    byId("count").textContent =
      `${shown.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} outputs`;
    byId("page").textContent = `page ${page + 1} of ${pages}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
  };

  const drawRow = (number) => {
    const row = data.rows[number];
    const line = make("tr");
    const key = make("button", `${row[column.github_id]}/${row[column.id]} · ${row[column.index]}`,
      "key");
    key.type = "button";
    key.dataset.number = number;
    key.setAttribute("aria-expanded", String(open.has(number)));
    key.title = "Show or hide what this output did";
    const first = make("td");
    first.append(key);
    const status = make("td", null, "name");
    status.append(make("span", null, `swatch s-${statusOf(row)}`), label(statusOf(row)));
    const cut = (text) => {
      const cell = make("td", null, "name");
      const inside = make("span", text, "cut");
      inside.title = text;
      cell.append(inside);
      return cell;
    };
    line.append(first, cut(repoOf(row)), status,
      make("td", seconds(row[column.wall_s])), make("td", seconds(row[column.cpu_s])),
      make("td", size(row[column.peak_memory_bytes])), make("td", exit(row)),
      cut(failureOf(row)));
    if (!open.has(number)) return [line];
    return [line, unfold(line, key, number)];
  };

  const unfold = (line, key, number) => {
    const detail = drawDetail(number);
    detail.id = `detail-${number}`;
    line.className = "open";
    key.setAttribute("aria-expanded", "true");
    key.setAttribute("aria-controls", detail.id);
    return detail;
  };

  const titled = (title, ...content) => [make("h4", title), ...content];
  const block = (text, none) => {
    if (!text) return make("p", none, "none");
    const pre = make("pre", text);
    pre.tabIndex = 0;
    return pre;
  };
  const highlighted = (runs) => {
    const pre = make("pre");
    pre.tabIndex = 0;
    for (let i = 0; i < runs.length; i += 2)
      pre.append(runs[i] ? make("span", runs[i + 1], `t-${runs[i]}`) : runs[i + 1]);
    return pre;
  };

  const drawDetail = (number) => {
    const row = data.rows[number];
    const detail = details().outputs[number];
    const task = details().tasks[`${row[column.github_id]}/${row[column.id]}`];
    const left = make("div");
    left.append(...titled("Instruction", block(task?.instruction, "not at hand")),
      ...titled(task ? `Code (the row asks for ${task.wants})` : "Code",
        detail.code ? highlighted(detail.code) : make("p", "not at hand", "none")));
    const right = make("div");
    if (row[column.wall_s] !== null) {
      const usage = make("dl", null, "usage");
      const facts = [
        ["wall-clock time", seconds(row[column.wall_s])],
        ["counted by the limit", seconds(row[column.counted_s])],
        ["CPU time", seconds(row[column.cpu_s])],
        ["waited for a CPU", seconds(row[column.stalled_s])],
        ["peak memory", size(row[column.peak_memory_bytes])],
        ["exit", exit(row)],
        ["limit met", row[column.limit] ?? "none"],
        ["slot", row[column.slot]],
        ["started", row[column.started_at]?.slice(11, 23)],
        ["interpreter", row[column.warm] ? "warm" : "cold"],
        ["attempts", row[column.attempts]],
      ];
      for (const [name, fact] of facts) usage.append(make("dt", name), make("dd", fact));
      right.append(...titled("Usage", usage));
      left.append(
        ...titled(`stdout (${size(row[column.stdout_bytes])})`, block(detail.stdout, "nothing")),
        ...titled(`stderr (${size(row[column.stderr_bytes])})`, block(detail.stderr, "nothing")));
    }
    if (task?.arguments.length) {
      const list = make("dl", null, "usage");
      for (const [name, value] of task.arguments) list.append(make("dt", name), make("dd", value));
      right.append(...titled("Arguments that it must name", list));
    }
    const reason = make("p", null, "why");
    reason.append(make("span", null, `swatch s-${statusOf(row)}`), detail.why);
    const inside = make("div", null, "opened");
    inside.append(reason, left, right);
    const cell = make("td");
    cell.colSpan = heads.length;
    cell.append(inside);
    const line = make("tr", null, "detail");
    line.append(cell);
    return line;
  };

  const toggle = (key) => {
    const number = Number(key.dataset.number);
    const line = key.closest("tr");
    if (!open.delete(number)) {
      open.add(number);
      line.after(unfold(line, key, number));
      return;
    }
    byId(`detail-${number}`).remove();
    line.className = "";
    key.setAttribute("aria-expanded", "false");
    key.removeAttribute("aria-controls");
  };

  // Controls.
  heads.forEach((head, place) => {
    const cell = make("th", null, head.text ? "name" : "");
    cell.scope = "col";
    const button = make("button", head.name);
    button.type = "button";
    button.addEventListener("click", () => {
      order = { by: place, down: order.by === place && !order.down };
      document.querySelectorAll("#heads th").forEach((one) => one.removeAttribute("aria-sort"));
      cell.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      select();
    });
    if (place === 0) cell.setAttribute("aria-sort", "ascending");
    cell.append(button);
    byId("heads").append(cell);
  });

  const option = (list, value, text) => {
    const one = make("option", text);
    one.value = value;
    list.append(one);
  };
  const present = new Set(data.rows.map(statusOf));
  for (const status of [...statuses, "unjudged"])
    if (present.has(status)) option(filters.status, status, label(status));
  for (const [number, name] of Object.entries(data.repos)) option(filters.repo, number, name);
  const failures = new Map(); // by kind: how often, and the ways to fail so
  for (const row of data.rows) {
    const number = row[column.failure];
    if (number === null) continue;
    const kind = data.failures[number][0];
    const known = failures.get(kind) ?? { count: 0, ways: new Map() };
    known.count += 1;
    known.ways.set(number, (known.ways.get(number) ?? 0) + 1);
    failures.set(kind, known);
  }
  for (const [kind, { count, ways }] of [...failures].sort((a, b) => b[1].count - a[1].count)) {
    const group = make("optgroup");
    group.label = data.kinds[kind];
    option(group, kind, `any ${data.kinds[kind]} (${count})`);
    for (const [number, times] of [...ways].sort((a, b) => b[1] - a[1]).slice(0, 50))
      option(group, number, `${failure(number)} (${times})`);
    filters.failure.append(group);
  }

  const form = byId("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", select);
  for (const one of [filters.status, filters.repo, filters.failure])
    one.addEventListener("change", select);
  form.addEventListener("reset", () => setTimeout(select));
  byId("previous").addEventListener("click", () => { page -= 1; draw(); });
  byId("next").addEventListener("click", () => { page += 1; draw(); });
  byId("body").addEventListener("click", (event) => {
    const key = event.target.closest?.(".key");
    if (key) toggle(key);
  });
  const names = ["status", "repo", "failure"];
  const only = ({ dataset }) => {
    form.reset();
    const given = names.filter((name) => dataset[name] !== undefined);
    for (const name of given) {
      filters[name].value = dataset[name];
      if (filters[name].value === dataset[name]) continue;
      option(filters[name], dataset[name], "not in this list"); // else it would stand for all
      filters[name].value = dataset[name];
    }
    select();
    byId("outputs").scrollIntoView();
    filters[given[0]].focus({ preventScroll: true });
  };
  const buttons = names.map((name) => `button[data-${name}]`).join();
  document.querySelectorAll(buttons).forEach((button) =>
    button.addEventListener("click", () => only(button)));

  const root = document.documentElement;
  byId("theme").addEventListener("click", () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // report.html#9/255/0 opens that output.
  const wanted = decodeURIComponent(location.hash.slice(1));
  const asked = data.rows.findIndex((row) => keyOf(row) === wanted);
  if (asked >= 0) { filters.text.value = wanted; open.add(asked); }
  select();
  if (asked >= 0) byId("outputs").scrollIntoView();
})();
