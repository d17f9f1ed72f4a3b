// Reads an AsyncAPI document from stdin; prints what the AsyncAPI project's own parser finds wrong with it.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const { document, diagnostics } = await new Parser().parse(readFileSync(0, "utf8"));
for (const each of diagnostics) console.log(each.severity, each.path.join("."), each.message);
if (document) console.log("channels:", document.channels().all().map((channel) => channel.id()).join(" "));
