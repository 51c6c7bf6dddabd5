// Without a script the page shows pictures; with one, the same in motion.

for (const [id, start] of [["curves", curves], ["explorer", latentExplorer]]) {
  const root = document.getElementById(id), given = document.getElementById(`${id}-data`);
  if (!root || !given) continue;
  start(root, JSON.parse(given.textContent));
  for (const still of document.querySelectorAll(`[data-still="${id}"]`)) still.classList.add("still");
}
