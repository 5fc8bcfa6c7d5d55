"use strict";
const $ = id => document.getElementById(id);
const short = digest => digest.slice(0, 12);
async function told(response) {  // the JSON of an answer, or an error with its words
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error ? answer.error.message : response.statusText);
  return answer;
}
function ask(path, question) {
  const body = JSON.stringify(question);
  return fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body });
}
async function look() {
  let bad = true;
  try {
    const status = await (await fetch("healthz", { cache: "no-store" })).json();
    bad = !status.digest || Boolean(status.log_trouble);
    $("state").textContent = status.digest ? "Cleared, verified while it was read, with nothing found against it." : "Nothing may be served.";
    $("served-name").textContent = status.name;
    $("served-digest").textContent = status.digest || "none";
    $("served-standby").textContent = status.standby.map(short).join(", ") || "none";
    $("served-over").textContent = status.passed_over.map(v => `${short(v.digest)}: ${v.why}`).join("; ") || "none";
    $("served-log").textContent = status.log_trouble ? `not readable for ${status.log_age_seconds} s: ${status.log_trouble}` : `verified, ${status.log_entries} entries`;
  } catch (error) {
    $("state").textContent = `This server does not answer: ${error.message}`;
  }
  $("served").className = bad ? "bad" : "good";
}
look();
setInterval(look, 3000);
