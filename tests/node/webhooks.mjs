// Reads {secret, id, timestamp, payload, headers} from stdin; verifies them by the reference library, and prints its own signature.
import { readFileSync } from "node:fs";
import { Webhook } from "standardwebhooks";

const { secret, id, timestamp, payload, headers } = JSON.parse(readFileSync(0, "utf8"));
const webhook = new Webhook(secret);
const verifies = (text) => {
  try {
    webhook.verify(text, headers);
    return true;
  } catch {
    return false;
  }
};
const signature = webhook.sign(id, new Date(timestamp * 1000), payload);
console.log(JSON.stringify({ signature, verified: verifies(payload), altered: verifies(payload + " ") }));
