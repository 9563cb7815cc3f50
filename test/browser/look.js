// What a reader of the report sees: texts, and sizes in pixels.
(() => {
	const text = node => node ? node.textContent.replace(/\s+/g, " ").trim() : "";
	const size = node => {
		const box = node.getBoundingClientRect();
		return { left: box.left, top: box.top + scrollY, width: box.width, height: box.height };
	};
	const line = node => ({
		name: text(node.querySelector("title")),
		points: node.points.length,
		finite: [...node.points].every(p => Number.isFinite(p.x) && Number.isFinite(p.y)),
		colour: getComputedStyle(node).stroke,
		box: size(node),
	});
	const chart = figure => {
		const svg = figure.querySelector("svg");
		return {
			caption: text(figure.querySelector("figcaption")),
			box: svg ? size(svg) : { left: 0, top: 0, width: 0, height: 0 },
			lines: [...figure.querySelectorAll("svg polyline")].map(line),
			legend: [...figure.querySelectorAll(".legend span")].map(text),
			ticks: [...figure.querySelectorAll("svg text")].map(text),
		};
	};
	const headings = [...document.querySelectorAll("h1, h2")];
	return {
		title: document.title,
		width: document.documentElement.clientWidth,
		scrollWidth: document.documentElement.scrollWidth,
		headings: headings.map(h => ({ text: text(h), box: size(h) })),
		correctness: [...document.querySelectorAll("#correctness + table tr")].slice(1).map(r => [...r.cells].map(text)),
		whole: [...document.querySelectorAll("figure")].filter(f => !f.closest("section")).map(chart),
		sections: [...document.querySelectorAll("section")].map(s => ({
			heading: text(s.querySelector("h2")),
			rows: s.querySelectorAll("table tr").length,
			charts: [...s.querySelectorAll("figure")].map(chart),
		})),
		charts: document.querySelectorAll("figure").length,
		images: document.querySelectorAll("svg").length,
	};
})()
