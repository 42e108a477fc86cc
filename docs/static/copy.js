// A button on each block of code, which copies it; of a session in a shell, the commands without their prompt.
document.addEventListener("DOMContentLoaded", () => {
  if (!navigator.clipboard) return; // as on a page without TLS
  for (const block of document.querySelectorAll("div[class*='highlight-'] pre")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      const text = block.innerText;
      const commands = text.split("\n").filter((line) => line.startsWith("$ "));
      const session = block.closest(".highlight-console") && commands.length;
      await navigator.clipboard.writeText(session ? commands.map((line) => line.slice(2) + "\n").join("") : text);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
    block.parentElement.append(button);
  }
});
